"""How tasks are run on small data."""

from dinov3_jax.evals import mini
from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.evals.mini_plan import PLANS, Plan


def test_plans_name_what_is_there():
  assert all(plan.task in TASKS and plan.data in mini.SETS for plan in PLANS)
  assert {plan.task for plan in PLANS} == {name for name, task in TASKS.items() if not task.text}
  assert {plan.data for plan in PLANS} | {"UCF101"} == set(mini.SETS)
  assert len({(plan.task, plan.data) for plan in PLANS}) == len(PLANS)


def test_a_plan_runs(session_of, mini_data):
  result = Plan("knn", "folders", "top-1, k = 20", 30).run(session_of("DAVIS"), mini_data)
  assert result.protocol["size"] == 24  # whole patches of 8
  assert 0 <= result.figures["top-1, k = 20"] <= 100
