import concurrent.futures
import contextlib

import pytest

pytest.importorskip('optuna')

from gpt_jax.errors import UserError
from gpt_jax.sweep import storage as storages
from gpt_jax.sweep.attempts import original_number
from gpt_jax.sweep.storage import without_password
from tests.sweep.fake_runs import FakeRuns


@pytest.fixture
def runs(monkeypatch, tmp_path):
    return FakeRuns(monkeypatch, tmp_path / 'sweep')


@pytest.mark.parametrize('sqlite', [False, True])
def test_a_trial_is_taken_over_when_its_process_is_gone(runs, sqlite):
    if sqlite:
        runs.storage = ''
    first, other = runs.share(), runs.share()

    def take(shared, held):
        with shared.locked():
            trial = shared.next_trial(1)
            if trial is not None:
                held.enter_context(shared.hold(trial))
            return trial

    with contextlib.ExitStack() as held:
        x = first.sweep.suggest(take(first, held)).overrides['x']
        assert take(other, held) is None
    with contextlib.ExitStack() as held:
        trial = take(other, held)
        assert trial.number == 1
        frozen = other.study.get_trials()[1]
        assert original_number(frozen) == 0 and frozen.params == {'x': x}
        assert other.sweep.suggest(trial).overrides == {'x': x}
        assert take(first, held) is None
    [attempts] = first.attempts()
    assert attempts.number == 0 and len(attempts.tries) == 2


def test_a_trial_that_ends_while_others_look_for_lost_ones_keeps_its_value(runs, monkeypatch):
    first, other = runs.share(), runs.share()
    with first.locked():
        trial = first.next_trial(1)
        held = contextlib.ExitStack()
        held.enter_context(first.hold(trial))
    is_free = storages._is_free

    def ends_first(path):
        first.study.tell(trial, 0.5)
        held.close()
        return is_free(path)

    monkeypatch.setattr(storages, '_is_free', ends_first)
    with other.locked():
        assert other.next_trial(1) is None
    [attempts] = other.attempts()
    assert attempts.last.value == 0.5


@pytest.mark.parametrize('storage', ['', 'journal.log'])
def test_studies_in_one_storage_share_its_lock(runs, tmp_path, storage):
    runs.storage = storage and str(tmp_path / storage)
    one, other = runs.share(name='one'), runs.share(name='other')

    def enter():
        with other.locked():
            return True

    with concurrent.futures.ThreadPoolExecutor() as pool:
        with one.locked():
            entered = pool.submit(enter)
            with pytest.raises(concurrent.futures.TimeoutError):
                entered.result(timeout=0.3)
        assert entered.result(timeout=10)


@pytest.mark.parametrize('spec', ['mysql://host/name', 'redis://host', 'sqlite://relative'])
def test_another_kind_of_storage_is_rejected(runs, spec):
    with pytest.raises(UserError, match=f'--storage={spec}: give sqlite:///FILE, postgresql://'):
        runs.share(storage=spec)


def test_a_file_that_is_no_storage_is_one_line(runs, tmp_path):
    path = tmp_path / 'text.db'
    path.write_text('no database' * 100)
    with pytest.raises(UserError, match='--storage=sqlite:///.*text.db: .*not a database'):
        runs.share(storage=f'sqlite:///{path}')
    with pytest.raises(UserError, match=r'--storage=.*text.db is no journal of Optuna'):
        runs.share(storage=str(path))


def test_a_password_is_hidden():
    assert without_password('postgresql://me:secret@host/a') == 'postgresql://me:***@host/a'
    assert without_password('postgresql+x://me:se:cr@host:1/a') == 'postgresql+x://me:***@host:1/a'
    assert without_password('sqlite:///a:b/c') == 'sqlite:///a:b/c'
