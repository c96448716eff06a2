"""The label orders that every emotion file and figure uses, and the mapping of GoEmotions' authors to Ekman's six and neutral."""

import numpy as np

LABELS = ("admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval disgust embarrassment "
          "excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse sadness surprise neutral").split()
EKMAN = {
    "anger": "anger annoyance disapproval",
    "disgust": "disgust",
    "fear": "fear nervousness",
    "joy": "joy amusement approval excitement gratitude love optimism relief pride admiration desire caring",
    "sadness": "sadness disappointment embarrassment grief remorse",
    "surprise": "surprise realization confusion curiosity",
    "neutral": "neutral",
}
# The classes that XED's lines are annotated with too, in the order of EKMAN; its anticipation and trust are left out.
XED = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
EKMAN_MEMBERS = [[LABELS.index(m) for m in members.split()] for members in EKMAN.values()]


def truth(rows):
    """[texts, 28] of zeros and ones from rows with `labels`."""
    return np.array([[label in row["labels"] for label in LABELS] for row in rows], np.float32)


def xed_truth(rows):
    """[lines, 6] of zeros and ones from XED's rows."""
    return np.array([[label in row["labels"] for label in XED] for row in rows], np.float32)
