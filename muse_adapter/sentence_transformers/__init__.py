"""Video-text models in sentence-transformers 6. Needs the extra `search`.

The files, each importing only files above it:

    frames      frames of one video or image, in any form in which it is given
    inputs      what each input of a batch is, and the frames of a whole batch
    backbone    a Hugging Face model with two towers, and its processor
    texts       how its texts are tokenized and embedded
    pixels      how its frames are preprocessed
    videos      how its frames are embedded
    scoring     the second stage of a search
    model_card  what a saved model says about itself
    module      `VideoTransformer`
    loading     `load`
    mteb        evaluation by mteb, with its own extra
"""

try:
    import sentence_transformers as _library
except ImportError as error:
    raise ImportError(
        "muse_adapter.sentence_transformers needs sentence-transformers 6 and what it reads videos "
        "with: pip install 'muse-adapter[search]'"
    ) from error
if int(_library.__version__.split(".")[0]) < 6:
    raise ImportError(
        "muse_adapter.sentence_transformers needs sentence-transformers 6 or newer, found "
        f"{_library.__version__}: pip install --upgrade 'muse-adapter[search]'"
    )

from muse_adapter.sentence_transformers.inputs import UnreadableVideos
from muse_adapter.sentence_transformers.loading import load
from muse_adapter.sentence_transformers.module import VideoTransformer

__all__ = ["UnreadableVideos", "VideoTransformer", "load"]
