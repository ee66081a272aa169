"""Errors under common corruptions (ImageNet-C), choices among some classes (A, R, ObjectNet)."""

from collections.abc import Mapping, Sequence

import numpy as np

# The error of AlexNet at each of the five levels (Hendrycks and Dietterich, ICLR 2019).
ALEXNET = {
  "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
  "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
  "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
  "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
  "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
  "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
  "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
  "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
  "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
  "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
  "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
  "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
  "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
  "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
  "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
  "speckle_noise": (0.66192, 0.7444, 0.90246, 0.94548, 0.97268),
  "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.9594),
  "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
  "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.8226),
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # released beside the usual 15


def mean_corruption_error(accuracy: Mapping[str, Mapping[int, float]],
                          extra: bool = False) -> float:
  """The mCE, Hendrycks and Dietterich 2019, section 4.1.

  A corruption's error is the mean of ours over the levels, divided by the mean of AlexNet's over
  the same levels: a ratio of means. The mCE is its mean over corruptions.

  Args:
    accuracy: by corruption and level (1 to 5), from 0 to 1. Corruptions and levels may be missing;
      those that are there count.
    extra: count the four extra corruptions too. The usual mCE is that of the other 15.

  Returns:
    In percent of AlexNet's error.

  Raises:
    ValueError: a corruption or a level that does not exist, or none that counts.
  """
  unknown = sorted(set(accuracy) - set(ALEXNET))
  if unknown:
    raise ValueError(f"there is no corruption {unknown[0]}: they are {', '.join(ALEXNET)}")
  ratios = []
  for name, levels in accuracy.items():
    if not levels or not set(levels) <= {1, 2, 3, 4, 5}:
      raise ValueError(f"{name} has levels {sorted(levels)}: they are 1 to 5")
    if extra or name not in EXTRA:
      ratios.append(np.mean([1 - value for value in levels.values()])
                    / np.mean([ALEXNET[name][level - 1] for level in levels]))
  if not ratios:
    raise ValueError("none of the 15 corruptions of the mCE is there")
  return float(100 * np.mean(ratios))


def predict_within(logits, classes: Sequence[int]) -> np.ndarray:
  """The best of some classes only.

  ImageNet-A and ImageNet-R have 200 of the 1000 classes. The logits are cut to these, in the order
  of the sorted folder names, before the argmax; without the cut the accuracy is lower.

  Args:
    logits: [N, C].
    classes: the ones that count, [K].

  Returns:
    int [N]: positions in `classes`.
  """
  return np.asarray(logits)[:, np.asarray(classes)].argmax(1)


def accuracy_of_folders(logits, folders: Sequence[str], classes: Mapping[str, Sequence[int]],
                        restrict: bool = True) -> tuple[float, int]:
  """The rule of ObjectNet (Barbu et al. 2019), whose folders stand for one or more classes.

  Args:
    logits: [N, C].
    folders: of each image, [N]. Images of folders that stand for no class do not count.
    classes: the classes that are right, by folder.
    restrict: take the argmax among all classes of `classes` (113 folders have 125 of ImageNet's)
      instead of all C.

  Returns:
    The accuracy from 0 to 1, and the number of images that count.

  Raises:
    ValueError: no image counts.
  """
  counted = [i for i, folder in enumerate(folders) if folder in classes]
  if not counted:
    raise ValueError("none of the images lies in a folder that stands for a class")
  among = (np.unique(np.concatenate([classes[folder] for folder in classes])) if restrict
           else np.arange(np.shape(logits)[1]))
  best = among[predict_within(np.asarray(logits)[counted], among)]
  return float(np.mean([b in classes[folders[i]] for b, i in zip(best, counted)])), len(counted)
