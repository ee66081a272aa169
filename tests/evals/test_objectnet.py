"""The table of ObjectNet's folders."""

from dinov3_jax.evals import objectnet


def test_the_recorded_table(recorded):
  record = recorded("imagenet_subsets")
  assert {name: list(own) for name, own in objectnet.FOLDERS.items()} == record[
      "objectnet_folder_to_imagenet"]
  assert set(objectnet.FOLDERS) < set(record["objectnet_all_folders"])
  assert len({i for own in objectnet.FOLDERS.values() for i in own}) == 125
