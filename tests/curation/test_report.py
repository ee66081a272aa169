from dinov3_jax.curation import steps
from dinov3_jax.curation.hierarchy import Settings
from dinov3_jax.curation.report import write_report


def test_report(curation, single, stored, inputs):
  other = curation.parent / "set"
  stored(other, inputs.POOL[40:60])
  clusters = steps.cluster(curation, [Settings(12, rounds=0, iterations=3)], single)
  sample = steps.sample(curation, 30)
  steps.dedup(curation, single, threshold=0.99999, against=[other], against_threshold=0.99999)
  steps.retrieve(curation, other, single, k=2)
  steps.mix(curation, [("sample", None, False), ("retrieved", None, False)])
  text = write_report(curation).read_text()
  assert "400 images of pool (all), 8 features each; 0 images could not be read, 1 have" in text
  level, after = clusters["levels"][0], sample["levels"][0]
  assert f"| {level['largest']} | {level['entropy']:.3f} | {level['evenness']:.3f} |" in text
  assert f"| {after['before']:.3f} | {after['after']:.3f} |" in text
  assert "Of 400 images 10 are duplicates of a kept one (cosine above 0.99999)" in text
  assert "20 were dropped as they resemble set" in text
  assert "40 images (" in text and "for a set of 20, 2 neighbours each" in text
  assert "| sample | pool | 30 |" in text and "| an image | 0.429 |" in text
  heads = [text.index(f"## {name}") for name in
           ("clusters (cluster)", "sample (sample)", "unique (dedup)", "retrieved (retrieve)",
            "mix (mix)", "Commands")]
  assert heads == sorted(heads)
