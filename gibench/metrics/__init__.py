"""How much of an image leaked: scores per image, floors to compare with, the risk curve, and intervals."""

from gibench.metrics.errors_in_pictures import ErrorsInPictures, Lineup
from gibench.metrics.floors import Floors
from gibench.metrics.image_quality import ImageQuality, psnr
from gibench.metrics.intervals import Interval, mean_interval, paired_difference, share_interval
from gibench.metrics.label_scores import LabelScores, label_scores
from gibench.metrics.limits import Limit
from gibench.metrics.risk import RiskCurve, default_deltas, risk_curve

__all__ = [
    "ErrorsInPictures",
    "Floors",
    "ImageQuality",
    "Interval",
    "LabelScores",
    "Limit",
    "Lineup",
    "RiskCurve",
    "default_deltas",
    "label_scores",
    "mean_interval",
    "paired_difference",
    "psnr",
    "risk_curve",
    "share_interval",
]
