"""`/v1/embeddings`: one vector per text, the mean of its last hidden states."""

import base64

import numpy as np
from starlette.responses import JSONResponse, Response

from gpt_jax.inference.config import SampleConfig
from gpt_jax.serve.http.bodies import EmbeddingBody
from gpt_jax.serve.http.served import ServedModel
from gpt_jax.serve.http.texts import Text, submitted
from gpt_jax.serve.http.work import perform


async def embed(body: EmbeddingBody, model: ServedModel) -> Response:
    """Returns the response: vectors `[D]` of length 1 (Euclidean).

    They are means over the text's tokens of the hidden states before the output layer. The model
    was trained to predict tokens, not to compare texts.
    """
    async with submitted(
        model, body.inputs, SampleConfig(max_new_tokens=1), scores_prompt=True, draws=False
    ) as texts:
        for text in texts:
            await text.result()
        size = sum(text.request.hidden.size for text in texts)
        return await perform(_response, texts, body, model, size=size)


def _response(texts: list[Text], body: EmbeddingBody, model: ServedModel) -> Response:
    data = []
    for index, text in enumerate(texts):
        hidden = text.request.hidden
        vector = (hidden / max(float(np.linalg.norm(hidden)), 1e-12)).astype('<f4')
        is_encoded = body.encoding_format == 'base64'
        encoded = base64.b64encode(vector.tobytes()).decode() if is_encoded else vector.tolist()
        data.append({'object': 'embedding', 'index': index, 'embedding': encoded})
    count = sum(len(text.request.prompt) for text in texts)
    usage = {'prompt_tokens': count, 'total_tokens': count}
    return JSONResponse({'object': 'list', 'model': model.name, 'data': data, 'usage': usage})
