"""The application that answers: the page, predictions, and what monitoring asks."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client import generate_latest as prometheus_text
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from stages.dataset import pictures
from stages.dataset.pictures import UnusablePictureError
from use.batching import Batching
from use.classifier import Classifier
from use.limits import Guard
from use.prepare import Pixels, Prepared

MAX_PICTURES = 64  # of a request
MAX_WAITING = 512  # pictures of all requests that are decoded and not yet classified
MAX_PIXELS = 50_000_000  # of a picture
SMALL = 10_000  # pixels; smaller pictures are decoded in less time than it takes to hand them to another thread
LARGE = 4_000_000  # pixels; of larger pictures one is decoded at a time
DRAWABLE = 64  # pixels a side: what a person can draw with a mouse
PAGE = Path(__file__).parent / "page"
PAGES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
OPEN_PATHS = (*PAGES, "/health", "/openapi.json")  # without a token


class Question(BaseModel):
    """The query of POST /predict."""

    top: int = Field(3, ge=1, le=65536, description="classes per picture")
    invert: Literal["auto", "yes", "no"] = Field("auto", description="auto: where light and dark look swapped")
    seen: bool = Field(False, description="with each picture as the network saw it")


class RankedClass(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Prediction(BaseModel):
    """What the model says of a picture; with an error there are no classes."""

    file: str
    classes: list[RankedClass] = Field([], description="the most probable first; none of a regression")
    value: float | None = Field(None, description="what a regression predicts")
    looks_inverted: bool = Field(False, description="light and dark look swapped against the training pictures")
    inverted: bool = Field(False, description="they were swapped back")
    seen: str | None = Field(None, description="the picture as the network saw it: a data URI of PNG")
    error: str | None = None


class Predictions(BaseModel):
    """The answer of POST /predict, in the order of the pictures."""

    model: str = Field(description="SHA-256 of the model file")
    predictions: list[Prediction]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


class Model(BaseModel):
    """What is served."""

    sha256: str
    classes: list[str] = Field(description="none of a regression, which predicts a number")
    image_shape: list[int] = Field(description="channels, height, width")
    drawable: bool = Field(description="small and grey: the page offers a place to draw")
    light_on_dark: bool = Field(description="as the training pictures")


class Metrics:
    """Counts and times, as Prometheus reads them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self.answers = Counter("answers", "Answers to POST /predict", ["status"], registry=self.registry)
        self.pictures = Counter("pictures", "Pictures, by outcome", ["outcome"], registry=self.registry)
        self.seconds = Histogram("answer_seconds", "From the headers to the answer", registry=self.registry)


class Service:
    """A classifier, and what stands between it and requests."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.metrics = Metrics()

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """A block in which requests can be answered."""
        threads = self.classifier.threads
        self.large, self.waiting = asyncio.Semaphore(1), asyncio.Semaphore(MAX_WAITING)
        with (
            ThreadPoolExecutor(threads) as self.decoders,
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as batches,
            self.classifier.in_parallel() as parallel,
        ):
            self.batching = Batching(self.classifier, batches, parallel)
            async with self.batching.running():
                yield

    async def predict(self, request: Request) -> Response:
        """POST /predict: a picture as the body, or several as the files of a form."""
        start, status = time.perf_counter(), 499  # nginx's status for a client that has gone
        try:
            answer = await self._answer(request)
            status = answer.status_code
            return answer
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            return Response(status_code=status)
        finally:
            self.metrics.answers.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)

    async def _answer(self, request: Request) -> Response:
        try:
            question = Question.model_validate(dict(request.query_params))
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=MAX_PICTURES, max_fields=0) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                contents = [(file.filename or "", await file.read()) for file in files]
        else:
            contents, form = [("", await request.body())], None
        if not contents:
            raise HTTPException(400, "no picture in the form: send files")
        predictions = await asyncio.gather(*(self._predict(name, content, question) for name, content in contents))
        answer = Predictions(model=self.classifier.sha256, predictions=predictions)
        status = 422 if form is None and predictions[0].error else 200
        return Response(answer.model_dump_json(), status, media_type="application/json")

    async def _predict(self, name: str, content: bytes, question: Question) -> Prediction:
        async with self.waiting:
            try:
                prepared = await self._prepare(content, question)
            except UnusablePictureError as error:
                self.metrics.pictures.labels("unreadable").inc()
                return Prediction(file=name, error=str(error))
            outputs = await self.batching.classify(prepared.pixels)
        self.metrics.pictures.labels("predicted").inc()
        ranking = self.classifier.ranking(outputs, question.top)
        return Prediction(
            file=name,
            classes=[RankedClass(name=rank.name, probability=round(rank.probability, 6)) for rank in ranking],
            value=self.classifier.value(outputs),
            looks_inverted=prepared.looks_inverted,
            inverted=prepared.inverted,
            seen=_data_uri(prepared.pixels) if question.seen else None,
        )

    async def _prepare(self, content: bytes, question: Question) -> Prepared:
        """Decode, on another thread if that takes long. Raises UnusablePictureError."""
        facts = pictures.facts(content)
        pixels = facts.width * facts.height
        if pixels > MAX_PIXELS:
            raise UnusablePictureError(
                f"{facts.width} x {facts.height} pixels; at most {MAX_PIXELS:,} are decoded here"
            )
        if pixels <= SMALL and len(content) <= SMALL:
            return self.classifier.prepare(content, question.invert)
        run = asyncio.get_running_loop().run_in_executor
        if pixels <= LARGE:
            return await run(self.decoders, self.classifier.prepare, content, question.invert)
        async with self.large:
            return await run(self.decoders, self.classifier.prepare, content, question.invert)

    async def model(self, request: Request) -> Response:
        """GET /model."""
        spec = self.classifier.spec
        return JSONResponse(
            Model(
                sha256=self.classifier.sha256,
                classes=spec.classes,
                image_shape=spec.image_shape,
                drawable=spec.image_shape[0] == 1 and max(spec.image_shape) <= DRAWABLE,
                light_on_dark=self.classifier.training_mean < 0.5,
            ).model_dump()
        )

    async def health(self, request: Request) -> Response:
        """GET /health: 200 as long as requests are answered."""
        return JSONResponse({"status": "ok", "model": self.classifier.sha256})

    async def report(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(prometheus_text(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def application(classifier: Classifier, token: str | None, local: bool) -> Starlette:
    """The application. token, local: as Guard takes them."""
    service = Service(classifier)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/model", service.model),
        Route("/health", service.health),
        Route("/metrics", service.report),
        Route("/openapi.json", openapi),
        *(Route(path, page) for path in PAGES),
    ]
    guard = Middleware(Guard, token=token, local=local, open_paths=OPEN_PATHS)
    handlers = {HTTPException: problem}
    return Starlette(routes=routes, middleware=[guard], lifespan=service.running, exception_handlers=handlers)


async def page(request: Request) -> Response:
    """The page and what belongs to it."""
    return FileResponse(PAGE / PAGES[request.url.path])


async def problem(request: Request, error: Exception) -> Response:
    """Why there is no answer."""
    status, reason = (
        (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "a bug of the server")
    )
    return JSONResponse(Problem(error=reason).model_dump(), status, getattr(error, "headers", None))


async def openapi(request: Request) -> Response:
    """What programs can ask, in OpenAPI 3.1."""
    answers = (Predictions, Problem, Model)
    schemas = [answer.model_json_schema(ref_template="#/components/schemas/{model}") for answer in answers]
    components = {name: part for schema in schemas for name, part in schema.pop("$defs", {}).items()}
    components |= {schema["title"]: schema for schema in schemas}

    def response(text: str, schema: str) -> dict[str, object]:
        content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
        return {"description": text, "content": {"application/json": content}}

    binary = {"type": "string", "format": "binary"}
    files = {"type": "object", "properties": {"picture": {"type": "array", "items": binary, "maxItems": MAX_PICTURES}}}
    query = Question.model_json_schema()["properties"]
    predict = {
        "summary": "Classify a picture, or the pictures of a form",
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()],
        "requestBody": {"content": {"image/*": {"schema": binary}, "multipart/form-data": {"schema": files}}},
        "responses": {
            "200": response("One prediction per picture; of a form also errors", "Predictions"),
            "422": response("The body is no picture that can be read", "Predictions"),
            **{
                str(status): response(text, "Problem")
                for status, text in {
                    400: "The query or the form is wrong",
                    401: "No token, or a wrong one",
                    408: "Took too long",
                    413: "Too large",
                    503: "Too busy",
                }.items()
            },
        },
    }
    text = {"200": {"description": "Text"}}
    paths = {
        "/predict": {"post": predict},
        "/model": {"get": {"responses": {"200": response("What is served", "Model")}}},
        "/health": {"get": {"responses": text}},
        "/metrics": {"get": {"responses": text}},
    }
    info = {"title": "Predictions", "version": "1"}
    return JSONResponse({"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}})


def _data_uri(pixels: Pixels) -> str:
    """A PNG file of a prepared picture (C, H, W)."""
    buffer = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    Image.fromarray(image).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
