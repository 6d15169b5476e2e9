"""Data sets with one convention: batches are time-major and go straight into `hypr_grad`.

Needs the extra `data` (`pip install 'hyprjax[data]'`). Loaders look for their files in the folder that the
environment variable `HYPRJAX_DATA` names, then in the user's cache, and download them where a stable
public file exists.
"""

from hyprjax.data._dataset import Dataset as Dataset
from hyprjax.data._dataset import batches as batches
from hyprjax.data._ecg import ecg_qtdb as ecg_qtdb
from hyprjax.data._events import heidelberg_digits as heidelberg_digits
from hyprjax.data._events import speech_commands as speech_commands
from hyprjax.data._images import digits as digits
from hyprjax.data._images import sequential_mnist as sequential_mnist
from hyprjax.data._speech import level_crossing as level_crossing
from hyprjax.data._speech import mel_spectrogram as mel_spectrogram
from hyprjax.data._speech import rate_coding as rate_coding
from hyprjax.data._speech import spoken_digits as spoken_digits
from hyprjax.data._synthetic import delayed_match as delayed_match
from hyprjax.data._synthetic import evidence_accumulation as evidence_accumulation
from hyprjax.data._synthetic import pattern_generation as pattern_generation
