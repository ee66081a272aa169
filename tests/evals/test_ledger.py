"""Results that outlive a kill."""

from dinov3_jax.evals.ledger import Ledger


def test_items_are_done_once(tmp_path):
  done = []
  path = tmp_path / "new" / "ledger"
  for _ in range(2):
    ledger = Ledger(path)
    results = [ledger.get(key, lambda key=key: done.append(key) or (key, 1.5)) for key in "ab"]
    assert results == [["a", 1.5], ["b", 1.5]]
  assert done == ["a", "b"] and len(Ledger(path)) == 2


def test_a_line_that_was_cut_is_done_again(tmp_path):
  path = tmp_path / "ledger"
  ledger = Ledger(path)
  for key in "ab":
    ledger.get(key, lambda: 1)
  path.write_text(path.read_text()[:-4])
  ledger = Ledger(path)
  assert len(ledger) == 1 and ledger.get("b", lambda: 2) == 2
  assert Ledger(path).get("a", lambda: 3) == 1 and Ledger(path).get("b", lambda: 3) == 2
