"""The web application: the page, predictions, and health and metrics for monitoring."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client import generate_latest as prometheus_text
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.common.errors import UserError
from stages.dataset import pictures
from stages.dataset.pictures import UnusablePictureError
from use import schemas
from use.batching import Batching
from use.classifier import Classifier
from use.limits import Guard
from use.mistakes import Mistakes
from use.prepare import Invert, Pixels, Prepared
from use.schemas import MAX_PICTURES, Prediction, Predictions, RankedClass, TrainingMistake, TrainingMistakes

MAX_WAITING = 512  # pictures of all requests that are decoded and not yet classified
MAX_PIXELS = 50_000_000  # per picture
SMALL = 10_000  # pixels, and bytes; decoding a smaller picture takes less time than handing it to another thread
LARGE = 4_000_000  # pixels; only one larger picture is decoded at a time
DRAWABLE = 64  # height and width, at most, of the images that a person can draw with a mouse
SEARCH_WAIT_SECONDS = 10  # an answer about training mistakes waits so long for the search
CLIENT_CLOSED = 499  # nginx's status for a client that closed the connection
PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
OPEN_PATHS = (*PAGE_FILES, "/health", "/openapi.json")  # need no token


class Metrics:
    """Counters and times for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self.answers = Counter("answers", "Answers to POST /predict", ["status"], registry=self.registry)
        self.pictures = Counter("pictures", "Pictures, by outcome", ["outcome"], registry=self.registry)
        self.seconds = Histogram("answer_seconds", "From the headers to the answer", registry=self.registry)


class Counted:
    """Middleware that counts and times the answers to POST /predict, those of Guard included."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/predict"):
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_CLOSED

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.answers.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)


class Service:
    """Handles requests with a classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.metrics = Metrics()
        self.mistakes: Mistakes | None = None  # until the first request for them

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """A context in which requests can be handled."""
        threads = self.classifier.threads
        self.large, self.waiting = asyncio.Semaphore(1), asyncio.Semaphore(MAX_WAITING)
        self.stop_search, self.opening = threading.Event(), asyncio.Lock()
        pool = partial(ThreadPoolExecutor, initializer=torch.set_num_threads, initargs=(1,))
        with (
            pool(threads) as self.workers,
            pool(1) as batches,
            pool(1) as self.searcher,
            self.classifier.in_parallel() as parallel,
        ):
            self.batching = Batching(self.classifier, batches, parallel)
            async with self.batching.running():
                try:
                    yield
                finally:
                    self.stop_search.set()

    async def predict(self, request: Request) -> Response:
        """POST /predict: a picture as the body, or several as the files of a form."""
        query = schemas.PredictQuery.of(request)
        content_type, options = parse_options_header(request.headers.get("content-type"))
        if content_type == b"multipart/form-data":
            if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # Python's codecs include some that make no text
                raise HTTPException(400, "the charset of a form must be utf-8")
            async with request.form(max_files=MAX_PICTURES, max_fields=0) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                contents = [(file.filename or "", await file.read()) for file in files]
        else:
            contents, form = [("", await request.body())], None
        if not contents:
            raise HTTPException(400, "no picture in the form: send files")
        predictions = await asyncio.gather(*(self._predict(name, content, query) for name, content in contents))
        answer = Predictions(model=self.classifier.sha256, predictions=predictions)
        return _json(answer, 422 if form is None and predictions[0].error else 200)

    async def _predict(self, name: str, content: bytes, query: schemas.PredictQuery) -> Prediction:
        async with self.waiting:
            try:
                prepared = await self._prepare(content, query.invert)
            except UnusablePictureError as error:
                self.metrics.pictures.labels("unreadable").inc()
                return Prediction(file=name, error=str(error))
            outputs = await self.batching.classify(prepared.pixels)
        self.metrics.pictures.labels("predicted").inc()
        ranking = self.classifier.ranking(outputs, query.top)
        return Prediction(
            file=name,
            classes=[RankedClass(name=rank.name, probability=round(rank.probability, 6)) for rank in ranking],
            value=self.classifier.value(outputs),
            looks_inverted=prepared.looks_inverted,
            inverted=prepared.inverted,
            seen=_data_uri(prepared.pixels) if query.seen else None,
        )

    async def _prepare(self, content: bytes, invert: Invert) -> Prepared:
        """Decode a picture, on another thread if that takes long. Raises UnusablePictureError."""
        run = asyncio.get_running_loop().run_in_executor
        small = len(content) <= SMALL  # reading the header of a larger file can take seconds
        facts = pictures.facts(content) if small else await run(self.workers, pictures.facts, content)
        pixels = facts.width * facts.height
        if pixels > MAX_PIXELS:
            raise UnusablePictureError(
                f"{facts.width} x {facts.height} pixels; the server decodes {MAX_PIXELS:,} at most"
            )
        if small and pixels <= SMALL:
            return self.classifier.prepare(content, invert)
        if pixels <= LARGE:
            return await run(self.workers, self.classifier.prepare, content, invert)
        async with self.large:
            return await run(self.workers, self.classifier.prepare, content, invert)

    async def similar_mistakes(self, request: Request) -> Response:
        """POST /mistakes: a picture as the body. The first request starts the search of the training images."""
        query, content = schemas.MistakesQuery.of(request), await request.body()
        answer = TrainingMistakes(model=self.classifier.sha256)
        try:
            mistakes, searching = await self._search()
        except (UserError, OSError) as error:
            answer.unavailable = str(error)
            return _json(answer)
        async with self.waiting:
            try:
                prepared = await self._prepare(content, query.invert)
            except UnusablePictureError as error:
                raise HTTPException(422, str(error)) from None
            run = asyncio.get_running_loop().run_in_executor
            nearest = await run(self.workers, mistakes.nearest, prepared.pixels, query.count)
        answer.training_images, answer.searched = len(mistakes.images), mistakes.searched
        answer.searching, answer.misclassified = searching, len(mistakes)
        answer.mistakes = [
            TrainingMistake(
                image=_data_uri(mistake.pixels),
                label=mistake.label,
                prediction=mistake.prediction,
                probability=round(mistake.probability, 6),
                similarity=round(mistake.similarity, 4),
            )
            for mistake in nearest
        ]
        return _json(answer)

    async def _search(self) -> tuple[Mistakes, bool]:
        """The mistakes, and whether the search still runs after SEARCH_WAIT_SECONDS. Raises UserError or OSError."""
        run = asyncio.get_running_loop().run_in_executor
        async with self.opening:
            if self.mistakes is None:
                self.mistakes = await run(self.workers, Mistakes, self.classifier)
                self.search = run(self.searcher, self.mistakes.search, self.stop_search)
            mistakes, search = self.mistakes, self.search
        await asyncio.wait([search], timeout=SEARCH_WAIT_SECONDS)
        if search.done() and (error := search.exception()):
            self.mistakes = None  # the next request tries again
            raise error
        return mistakes, not search.done()

    async def model(self, request: Request) -> Response:
        """GET /model."""
        spec = self.classifier.spec
        return _json(
            schemas.Model(
                sha256=self.classifier.sha256,
                classes=spec.classes,
                image_shape=spec.image_shape,
                drawable=spec.image_shape[0] == 1 and max(spec.image_shape) <= DRAWABLE,
                light_on_dark=self.classifier.training_mean < 0.5,
            )
        )

    async def health(self, request: Request) -> Response:
        """GET /health: 200 as long as the server answers requests."""
        return JSONResponse({"status": "ok", "model": self.classifier.sha256})

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(prometheus_text(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def application(classifier: Classifier, token: str | None, local: bool) -> ASGIApp:
    """The application. token, local: see Guard."""
    service = Service(classifier)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/mistakes", service.similar_mistakes, methods=["POST"]),
        Route("/model", service.model),
        Route("/health", service.health),
        Route("/metrics", service.prometheus),
        Route("/openapi.json", openapi),
        *(Route(path, page_file) for path in PAGE_FILES),
    ]
    handlers = {HTTPException: problem, ClientDisconnect: problem, Exception: problem}
    app = Starlette(routes=routes, lifespan=service.running, exception_handlers=handlers)
    # Outside of Starlette, which answers unexpected errors outside of its own middleware.
    return Counted(Guard(app, token, local, OPEN_PATHS), service.metrics)


async def page_file(request: Request) -> Response:
    """The page, its style sheet or its script."""
    return FileResponse(PAGE / PAGE_FILES[request.url.path])


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(schemas.openapi())


async def problem(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    status, reason, headers = 500, "a bug in the server", None
    if isinstance(error, HTTPException):
        status, reason, headers = error.status_code, error.detail, error.headers
    elif isinstance(error, ClientDisconnect):  # nobody receives this answer
        status, reason = CLIENT_CLOSED, "the client closed the connection"
    return JSONResponse(schemas.Problem(error=reason).model_dump(), status, headers)


def _json(answer: BaseModel, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")


def _data_uri(pixels: Pixels) -> str:
    """A prepared picture (C, H, W) as a PNG file."""
    buffer = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)  # (H, W) or (H, W, 3)
    Image.fromarray(image).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
