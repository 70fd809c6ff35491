"""The published data sets: their files, with sizes and digests, and their mirrors.

The mirrors are copied from torchvision, which takes 2.7 s to import; a test compares the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """One IDX file, pinned by one of the two digests. Gzipped files differ between mirrors, their content does not."""

    name: str
    size: int  # bytes, uncompressed
    sha256: str | None = None  # of the content
    gzip_sha256: str | None = None  # of the gzipped file, if no digest of the content is published


@dataclass(frozen=True)
class DataSet:
    """A published data set of images, with a training and a test part."""

    files: tuple[PublishedFile, ...]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    train_images: int
    test_images: int
    largest_class: int  # images of the most frequent class in the training part
    package: bool = False  # whether stages/download/mnist_package.py can fetch it, too


def _mnist_like(
    mirrors: tuple[str, ...], classes: tuple[str, ...], largest_class: int, package: bool = False, **pins: str
) -> DataSet:
    """A data set with MNIST's file names and sizes. pins: a digest field of PublishedFile = the four digests."""
    sizes = {
        "train-images-idx3-ubyte": 47_040_016,
        "train-labels-idx1-ubyte": 60_008,
        "t10k-images-idx3-ubyte": 7_840_016,
        "t10k-labels-idx1-ubyte": 10_008,
    }
    ((kind, digests),) = pins.items()
    files = tuple(
        PublishedFile(name, size, **{kind: digest})
        for (name, size), digest in zip(sizes.items(), digests.split(), strict=True)
    )
    return DataSet(files, mirrors, classes, (1, 28, 28), 60_000, 10_000, largest_class, package)


DATA_SETS = {
    # LeCun, Cortes and Burges 1998
    "mnist": _mnist_like(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        tuple("0123456789"),
        largest_class=6_742,
        package=True,
        sha256="""
            ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
            65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
            0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
            ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
        """,
    ),
    # Xiao, Rasul and Vollgraf 2017
    "fashion-mnist": _mnist_like(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        largest_class=6_000,
        sha256="""
            c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
            bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
            5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
            0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
        """,
    ),
    # Clanuwat et al. 2018. The digests are from TensorFlow Datasets; none of the content is published.
    "kmnist": _mnist_like(
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        largest_class=6_000,
        gzip_sha256="""
            51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
            e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
            edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
            20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
        """,
    ),
}
