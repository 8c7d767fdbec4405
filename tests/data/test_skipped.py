"""Which batch a step takes where some are left out."""

import itertools

import pytest

from gpt_jax.config import RunConfig, finalize
from gpt_jax.data.skipped import BatchOrder, parse_skip_steps
from gpt_jax.errors import UserError

ENTRIES = [(), ('1',), ('3',), ('3-5',), ('1-2', '3', '7-9'), ('6', '8')]


def taken(entries):
    """The numbers of the first batches that are not left out, one by one."""
    skipped = {number for each in parse_skip_steps(entries).skipped for number in each}
    return [number for number in range(1, 40) if number not in skipped][:20]


@pytest.mark.parametrize('entries', ENTRIES)
def test_steps_take_the_batches_that_are_left_in_order(entries):
    order = parse_skip_steps(entries)
    assert [order.batch_of(step) for step in range(1, 21)] == taken(entries)
    assert [order[step] for step in range(20)] == [(0, each - 1) for each in taken(entries)]
    assert order.batch_of(0) == 0 or entries == ('1',)


@pytest.mark.parametrize('one, other', [*itertools.product(ENTRIES, repeat=2)])
def test_the_first_difference_is_where_the_sequences_part(one, other):
    first = parse_skip_steps(one).first_difference(parse_skip_steps(other))
    in_one, in_other = ({*range(1, 12)} - {*taken(each)} for each in (one, other))
    assert first == min(in_one ^ in_other, default=None)


def test_one_more_is_spelled():
    order = parse_skip_steps(['3-5', '9'])
    for number, expected in ((1, '1,3-5,9'), (6, '3-6,9'), (10, '3-5,9-10'), (4, '3-5,9')):
        assert order.spell_with(number) == expected
        parse_skip_steps(expected.split(','))
    assert BatchOrder(()).spell_with(7) == '7'


@pytest.mark.parametrize('entry', ['', 'x', '0', '0-3', '5-3', '-3', '3-', '1e3', '9' * 11, '٣'])
def test_what_is_no_step_is_refused(entry):
    with pytest.raises(UserError, match=r'^config\.data\.skip_steps=.* must be a step such as'):
        parse_skip_steps([entry])


@pytest.mark.parametrize('entries', [('5', '5'), ('5', '3'), ('3-5', '5-6'), ('3-5', '4')])
def test_entries_ascend(entries):
    with pytest.raises(UserError, match='does not come after 5; give the steps in ascending order'):
        parse_skip_steps(entries)


def test_a_flag_has_commas_and_a_file_may_have_numbers():
    config = RunConfig()
    config.data.skip_steps = ('3-5,7', 9)
    assert finalize(config, vocab_size=5).data.skip_steps == ('3-5', '7', '9')
    config.data.skip_steps = ('3', '1')
    with pytest.raises(UserError, match=r"^config\.data\.skip_steps='1' does not come after 3"):
        finalize(config, vocab_size=5)
