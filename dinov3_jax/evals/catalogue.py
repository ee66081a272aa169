"""The tasks of `python -m dinov3_jax.evaluate`. It imports nothing that is slow."""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Task:
  """A function `run(session) -> Result`, imported when it is called.

  Attributes:
    group: of the list of tasks.
    place: module in `dinov3_jax.evals.tasks`, and function.
    layout: the folder that it wants.
    text: whether it takes a model of text, as `dinov3_jax.load_text` returns, for a backbone.
    options: the names that it asks `Session.options` for.
  """

  group: str
  place: str
  layout: str
  text: bool = False
  options: tuple[str, ...] = ()

  def __call__(self, session):
    module, function = self.place.split(":")
    return getattr(importlib.import_module(f"dinov3_jax.evals.tasks.{module}"), function)(session)


TASKS = {
  "knn": Task("global", "folders:knn", "train/CLASS/*.jpg and val/CLASS/*.jpg"),
  "linear": Task("global", "folders:linear", "train/CLASS/*.jpg and val/CLASS/*.jpg"),
  "imagenet": Task("global", "imagenet:run",
                   "train/WNID, val/WNID; imagenet-{a,r,c}, sketch, real.json, objectnet-1.0"),
  "logistic": Task("global", "folders:logistic", "train/CLASS/*.jpg and test/CLASS/*.jpg (or val)"),
  "segmentation": Task("dense", "segmenting:run",
                       "VOCdevkit/VOC2012, ADEChallengeData2016, or leftImg8bit and gtFine",
                       options=("rate_factor",)),
  "depth": Task("dense", "nyu:run", "nyu_train.txt, nyu_test.txt and what they name",
                options=("rate_factor",)),
  "kitti": Task("dense", "kitti:run", "eigen_{train,test}_files_with_gt.txt, raw/ and "
                "data_depth_annotated/", options=("rate_factor",)),
  "navi": Task("3D", "views:run", "navi_v1/OBJECT/wild_set with images/, depth/, annotations.json"),
  "stereo": Task("3D", "stereo:run", "SCENE/ of Middlebury 2014 with disp0.pfm and calib.txt"),
  "spair": Task("3D", "keypoints:run", "SPair-71k with PairAnnotation/test"),
  "discovery": Task("objects", "discovery:run",
                    "VOCdevkit/VOC2007 or VOC2012, or COCO with coco_20k_filenames.txt"),
  "tracking": Task("video", "tracking:run", "DAVIS 2017, YouTube-VOS or MOSE as downloaded"),
  "actions": Task("video", "actions:run",
                  "UCF101, SSv2 or Kinetics as downloaded, or train.csv and val.csv",
                  options=("frames", "batch", "width", "heads", "blocks", "ratio")),
  "oxford": Task("retrieval", "instances:oxford", "gnd_roxford5k.pkl (or rparis6k) and jpg/*.jpg"),
  "met": Task("retrieval", "artworks:run", "images/ and ground_truth/*.json"),
  "amstertime": Task("retrieval", "instances:amstertime", "new/0000.png and old/0000.jpg"),
  "pca": Task("pictures", "pictures:pca", "a folder of images, or of videos",
              options=("skip",)),
  "foreground": Task("pictures", "pictures:foreground", "images/NAME.jpg and labels/NAME.png"),
  "zeroshot": Task("text", "zeroshot:run", "val/CLASS/*.jpg, ImageNet's or any", text=True),
  "retrieval_text": Task("text", "retrieval_text:run",
                         "COCO or Flickr30k with dataset_*.json, or COCO's annotations", text=True),
  "segmentation_text": Task("text", "segmentation_text:run", "as segmentation", text=True),
}
