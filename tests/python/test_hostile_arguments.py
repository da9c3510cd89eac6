"""Bad arguments of every public callable: an exception that names the argument, never anything else."""

import hostile_core
import hostile_router
import pytest

TABLE = [(case, wrong) for case in hostile_core.CASES + hostile_router.CASES for wrong in case.arguments]


@pytest.mark.parametrize("case, wrong", TABLE, ids=[f"{case.title}.{wrong}" for case, wrong in TABLE])
def test_bad_argument(case, wrong):
    good = {name: value for name, (value, _) in case.arguments.items()}
    kind = case.arguments[wrong][1]
    for make in kind.bad:
        value = make()
        try:
            case.call(**(good | {wrong: value}))
        except (TypeError, ValueError) as error:
            assert wrong in str(error), f"{value!r:.80} for a {kind.name}: {type(error).__name__}: {error}"
            assert len(str(error)) < 1000
        else:
            pytest.fail(f"{value!r:.80} passes for a {kind.name}")
