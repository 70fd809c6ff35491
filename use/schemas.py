"""What the server's requests and answers contain, and their description in OpenAPI."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_PICTURES = 64  # per request


class Query(BaseModel):
    """Parameters in the address of a request."""

    model_config = ConfigDict(extra="forbid")

    invert: Literal["auto", "yes", "no"] = Field("auto", description="auto: if light and dark look swapped")

    @classmethod
    def of(cls, request: Request) -> Self:
        """The query of a request. Raises HTTPException."""
        try:
            return cls.model_validate(dict(request.query_params))
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class PredictQuery(Query):
    """The query of POST /predict."""

    top: int = Field(3, ge=1, le=65536, description="classes per picture")
    seen: bool = Field(False, description="return each picture as the network sees it")


class MistakesQuery(Query):
    """The query of POST /mistakes."""

    count: int = Field(4, ge=1, le=32, description="how many training images to return")


class RankedClass(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Prediction(BaseModel):
    """The prediction for a picture. If there is an error, there are no classes."""

    file: str
    classes: list[RankedClass] = Field([], description="the most probable first; empty for regression")
    value: float | None = Field(None, description="the predicted number, for regression")
    looks_inverted: bool = Field(False, description="light and dark look swapped, compared with the training images")
    inverted: bool = Field(False, description="light and dark were swapped before the prediction")
    seen: str | None = Field(None, description="the picture as the network sees it: a data URI of PNG")
    error: str | None = None


class Predictions(BaseModel):
    """The answer of POST /predict, in the order of the pictures."""

    model: str = Field(description="SHA-256 of the model file")
    predictions: list[Prediction]


class TrainingMistake(BaseModel):
    """A training image that the model misclassifies."""

    image: str = Field(description="a data URI of PNG")
    label: str
    prediction: str
    probability: float = Field(description="of the prediction")
    similarity: float = Field(description="cosine between the inputs of the network's last layer: -1 to 1")


class TrainingMistakes(BaseModel):
    """The answer of POST /mistakes: the misclassified training images that are most similar to the picture."""

    model: str = Field(description="SHA-256 of the model file")
    training_images: int = 0
    searched: int = Field(0, description="less than training_images if the search still runs, or reached a limit")
    searching: bool = Field(False, description="the search still runs; another request gives more")
    misclassified: int = Field(0, description="how many of the searched images are misclassified")
    mistakes: list[TrainingMistake] = Field([], description="the most similar first")
    unavailable: str | None = Field(None, description="why no training images can be shown")


class Problem(BaseModel):
    """Why a request failed."""

    error: str


class Model(BaseModel):
    """The served model."""

    sha256: str
    classes: list[str] = Field(description="empty for regression")
    image_shape: list[int] = Field(description="channels, height, width")
    drawable: bool = Field(description="small and grey: the page offers a canvas")
    light_on_dark: bool = Field(description="the training images are light on dark")


PROBLEMS = {
    400: "The query or the form is invalid",
    401: "The token is missing or wrong",
    408: "The request took too long",
    413: "The request is too large",
    422: "The body is not a readable picture",
    503: "The server is too busy",
}


def openapi() -> dict[str, object]:
    """The description of the server in OpenAPI 3.1."""
    answers = (Predictions, TrainingMistakes, Problem, Model)
    schemas = [answer.model_json_schema(ref_template="#/components/schemas/{model}") for answer in answers]
    components = {name: part for schema in schemas for name, part in schema.pop("$defs", {}).items()}
    components |= {schema["title"]: schema for schema in schemas}

    binary = {"type": "string", "format": "binary"}
    files = {"type": "object", "properties": {"picture": {"type": "array", "items": binary, "maxItems": MAX_PICTURES}}}
    picture = {"image/*": {"schema": binary}}
    predict = {
        "summary": "Classify a picture, or the pictures of a form",
        "parameters": _parameters(PredictQuery),
        "requestBody": {"content": {**picture, "multipart/form-data": {"schema": files}}},
        "responses": {
            **{str(status): _response(text, "Problem") for status, text in PROBLEMS.items()},
            "200": _response("One prediction per picture; with a form, some may have an error", "Predictions"),
            "422": _response(PROBLEMS[422], "Predictions"),
        },
    }
    mistakes = {
        "summary": "Find the misclassified training images that are most similar to a picture",
        "parameters": _parameters(MistakesQuery),
        "requestBody": {"content": picture},
        "responses": {
            **{str(status): _response(text, "Problem") for status, text in PROBLEMS.items()},
            "200": _response("The training images", "TrainingMistakes"),
        },
    }
    text = {"200": {"description": "Text"}}
    paths = {
        "/predict": {"post": predict},
        "/mistakes": {"post": mistakes},
        "/model": {"get": {"responses": {"200": _response("The served model", "Model")}}},
        "/health": {"get": {"responses": text}},
        "/metrics": {"get": {"responses": text}},
    }
    info = {"title": "Predictions", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}}


def _parameters(query: type[Query]) -> list[dict[str, object]]:
    properties = query.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _response(text: str, schema: str) -> dict[str, object]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": text, "content": {"application/json": content}}
