import functools
import math

import pytest

pytest.importorskip('optuna')

import optuna

from gpt_jax.errors import Diverged, UserError
from gpt_jax.sweep import worker
from gpt_jax.sweep.definition import Trial
from tests.sweep.fake_runs import STEPS, FakeRuns

samplers, pruners = optuna.samplers, optuna.pruners


@pytest.fixture
def runs(monkeypatch, tmp_path):
    return FakeRuns(monkeypatch, tmp_path / 'sweep')


def states(attempts) -> list[str]:
    return [str(each.state) for each in attempts]


def points(attempts) -> list[float]:
    return [each.last.params['x'] for each in attempts]


def test_metric_and_curve_are_those_of_the_run(runs):
    [only] = runs.sweep(1)
    x = only.last.params['x']
    assert only.last.value == x**2 + 1 / STEPS
    assert only.last.intermediate_values == {step: x**2 + 1 / step for step in range(1, STEPS + 1)}
    assert runs.sweep(1) and len(runs.seen) == STEPS, 'a finished trial runs again'


@pytest.mark.parametrize(
    'sampler', [samplers.TPESampler, samplers.RandomSampler, samplers.QMCSampler]
)
def test_samplers_draw_other_points_in_each_trial(runs, sampler):
    first = points(runs.sweep(3, sampler=sampler))
    both = points(runs.sweep(5, sampler=sampler))
    assert both[:3] == first and len(set(both)) == 5


def test_quasi_random_points_go_on_in_their_sequence(runs):
    def draw(seed):
        return samplers.QMCSampler(qmc_type='halton', seed=1)

    found = points(runs.sweep(5, sampler=draw)[1:])  # the first is random
    assert sorted(found) == pytest.approx([-1, -0.5, 0, 0.5])


def test_a_grid_is_tried_in_order_and_then_the_sampler(runs):
    def draw(trial):
        return Trial(overrides={'x': trial.suggest_float('x', -1, 1)})

    sweep = functools.partial(runs.sweep, suggest=draw, grid={'x': [0.5, -0.5, 0.25]})
    assert points(sweep(2)) == [0.5, -0.5]
    assert points(sweep(3)) == [0.5, -0.5, 0.25]
    longer = points(sweep(4))
    assert longer[:3] == [0.5, -0.5, 0.25] and longer[3] not in longer[:3]


@pytest.mark.parametrize(
    'pruner',
    [
        pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=2),
        pruners.HyperbandPruner(min_resource=1, max_resource=STEPS, reduction_factor=3),
    ],
)
def test_pruners_end_runs(runs, pruner):
    runs.loss = lambda x, step: abs(x) + 1 / step
    found = runs.sweep(20, pruner=pruner, sampler=samplers.RandomSampler)
    pruned = [each for each in found if each.state == 'pruned']
    assert 5 <= len(pruned) < 20
    for each in pruned:
        x, last = each.last.params['x'], max(each.last.intermediate_values)
        assert last < STEPS and max(step for at, step in runs.seen if at == x) == last
    complete = [abs(each.last.params['x']) for each in found if each.state == 'complete']
    assert sum(complete) / len(complete) < sum(map(abs, points(pruned))) / len(pruned)


def test_a_run_that_diverges_is_pruned(runs):
    def diverge(x, step):
        if step == 3 and x > 0:
            raise Diverged('the weights are not finite')

    runs.before = diverge
    found = runs.sweep(4, grid={'x': [-0.5, 0.5]})
    assert states(found)[:2] == ['complete', 'pruned']
    assert found[1].last.user_attrs['reason'] == 'the weights are not finite'


@pytest.mark.parametrize('at', [4, STEPS])
def test_a_metric_that_is_not_finite_prunes(runs, at):
    runs.loss = lambda x, step: math.nan if step == at else 1.0
    [only] = runs.sweep(1)
    assert only.state == 'pruned' and len(only.last.intermediate_values) == at - 1


def crash(x, step):
    if x == 0.5 and step == 3:
        raise RuntimeError('lost the device')


def test_a_run_that_always_crashes_is_tried_three_times(runs, capsys):
    runs.before = crash
    found = runs.sweep(2, grid={'x': [0.25, 0.5]})
    assert states(found) == ['complete', 'failed']
    assert len(found[1].tries) == 3 and found[1].number == 1
    assert found[1].last.user_attrs['reason'] == 'lost the device'
    assert 'RuntimeError: lost the device' in capsys.readouterr().err
    assert len(runs.sweep(2, grid={'x': [0.25, 0.5]})[1].tries) == 3


def test_crashes_count_as_long_as_a_run_gets_no_further(runs):
    left = {3: 2, 6: 2}

    def crash_sometimes(x, step):
        if left.get(step):
            left[step] -= 1
            raise RuntimeError('no luck')

    runs.sweep(1, name='good', grid={'x': [0.25]})
    runs.before = crash_sometimes
    [_, found] = runs.sweep(2, name='good', grid={'x': [0.25, 0.5]})
    assert found.state == 'complete' and len(found.tries) == 5
    assert [*found.last.intermediate_values] == [*range(1, STEPS + 1)]


def test_a_run_that_is_rejected_is_not_tried_again(runs):
    def reject(x, step):
        if x == 0.5:
            raise UserError('config.x=0.5 is wrong')

    runs.before = reject
    found = runs.sweep(3, grid={'x': [0.25, 0.5, 0.75]})
    assert states(found) == ['complete', 'failed', 'complete']
    assert [len(each.tries) for each in found] == [1, 1, 1]


@pytest.mark.parametrize('error', [UserError('config.x is wrong'), RuntimeError('no device')])
def test_an_error_of_the_first_run_stops_the_sweep_and_costs_nothing(runs, error):
    def fail(x, step):
        raise error

    runs.before, good = fail, runs.before
    for _ in range(4):
        with pytest.raises(type(error), match=str(error)):
            runs.sweep(2)
    assert not runs.seen
    runs.before = good
    assert states(runs.sweep(2)) == ['complete', 'complete']


@pytest.mark.parametrize(
    ('suggest', 'message'),
    [
        (lambda trial: {'x': 1}, 'suggest, in trial 0: TypeError: it returned .* not a gpt_jax'),
        (lambda trial: 1 / 0, 'suggest, in trial 0: ZeroDivisionError: division by zero'),
    ],
)
def test_a_wrong_suggest_is_one_line_and_costs_nothing(runs, suggest, message):
    with pytest.raises(UserError, match=message):
        runs.sweep(1, suggest=suggest)
    assert states(runs.sweep(1)) == ['complete']


def test_suggest_may_leave_out_a_point(runs):
    def choose(trial):
        x = trial.suggest_float('x', -1, 1)
        if x > 0:
            raise optuna.TrialPruned('not this one')
        return Trial(overrides={'x': x})

    assert states(runs.sweep(2, suggest=choose, grid={'x': [0.5, -0.5]})) == ['pruned', 'complete']


def test_a_metric_that_no_run_has_stops_the_sweep_and_costs_nothing(runs):
    with pytest.raises(UserError, match=r"trials/0/metrics.jsonl has no 'eval/los'; let sweep.me"):
        runs.sweep(2, metric='eval/los')
    assert len(runs.seen) == STEPS
    found = runs.sweep(2)
    assert states(found) == ['complete', 'complete'] and len(found[0].tries) == 2


def test_another_goal_of_the_same_study_is_rejected(runs):
    runs.sweep(1)
    for change in ({'metric': 'eval/bits'}, {'direction': 'maximize'}):
        with pytest.raises(UserError, match=r"the study 'fake' in .* is to minimize eval/loss"):
            runs.share(**change)


def test_a_new_study_does_not_take_over_workdirs_of_another(runs, tmp_path):
    runs.sweep(1)
    with pytest.raises(
        UserError, match=r"trials has trials, but the study 'renamed' in .*/journal.log is new"
    ):
        runs.share(name='renamed')
    with pytest.raises(UserError, match='give the --storage and the name'):
        runs.share(storage=str(tmp_path / 'other.log'))


def test_a_folder_can_be_moved_with_its_storage(runs):
    runs.storage = ''  # SQLite
    runs.sweep(1)
    runs.folder = runs.folder.rename(runs.folder.with_name('moved'))
    assert states(runs.sweep(2)) == ['complete', 'complete'] and len(runs.seen) == 2 * STEPS


def test_a_stop_signal_is_no_crash(runs):
    runs.sweep(1, grid={'x': [0.25]})
    good = runs.before

    def stop(x, step):
        if step == 3:
            raise KeyboardInterrupt

    for _ in range(5):
        runs.before = stop
        with pytest.raises(KeyboardInterrupt):
            runs.sweep(2)
    runs.before = good
    found = runs.sweep(2)
    assert states(found) == ['complete', 'complete'] and len(found[1].tries) == 6


def test_a_trial_that_another_process_took_over_is_left_to_it(runs, capsys):
    shared = runs.share()

    def take_over(x, step):
        if step == 3 and not taken:
            taken.append(shared.study.tell(0, state=optuna.trial.TrialState.FAIL))

    taken, runs.before = [], take_over
    worker.run_trials(shared, trials=1, report=lambda: None)
    assert 'another process has taken this trial over' in capsys.readouterr().out
    assert states(shared.attempts()) == ['complete']
