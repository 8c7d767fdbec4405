"""Streaming against decoding everything at once, on bytes of any kind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.tokenizer.streaming import StreamDecoder

PIECES = [b' ', b'  ', b'a', *('é', '日', '👩'), b'\xe2\x96', b'\xf0\x9f', b'\xff', b'\xed\xa0\x80']
BYTES = [p if isinstance(p, bytes) else p.encode() for p in PIECES]


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(BYTES) | st.binary(max_size=3)), st.integers(0, 2))
def test_pushes_equal_the_whole(parts, leading_spaces):
    stream = StreamDecoder(lambda data: data, leading_spaces=leading_spaces)
    streamed = ''.join([stream.push(part) for part in parts] + [stream.flush()])
    data = b''.join(parts)
    for _ in range(leading_spaces):
        data = data.removeprefix(b' ')
    assert streamed == data.decode('utf-8', 'replace')


def test_half_a_character_waits():
    stream = StreamDecoder(lambda data: data)
    shown = [stream.push(bytes([byte])) for byte in '👩'.encode()]
    assert shown == ['', '', '', '👩']
    assert stream.push(b'\xf0\x9f') == ''
    assert stream.flush() == '\ufffd'
