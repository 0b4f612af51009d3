"""Attention probabilities: equal to transformers', for Cloze's own models and those that transformers runs."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cloze.pipeline.core.errors import UserError
from cloze.training.vectors.attention import attention_probabilities
from cloze.training.vectors.hidden_states import batches
from tests.training.finetune.encoders.test_transformers_encoder import read_encoder
from tests.training.finetune.encoders.transformers_folders import MODEL_TYPES
from tests.training.vectors.test_hidden_states import encoded, folder_of  # noqa: F401


@pytest.mark.parametrize("model_type", ["bert", *MODEL_TYPES])
def test_attention_is_that_of_transformers_and_adds_up_to_one(model_type: str, folder_of: Any, tmp_path: Any) -> None:  # noqa: F811
    encoder = read_encoder(folder_of(model_type), tmp_path)
    reference = AutoModel.from_pretrained(folder_of(model_type), attn_implementation="eager").eval()
    inputs, layered = encoded(encoder), encoder.layered_encoder(0, pretrained=True)
    for rows in batches(inputs.lengths):
        ids, segments, mask = inputs.batch(rows, layered.device)
        options = {"token_type_ids": segments} if model_type in ("bert", "albert") else {}
        padded = ids.masked_fill(~mask, reference.config.pad_token_id)
        with torch.inference_mode():
            found = attention_probabilities(layered, ids, segments, mask)
            expected = reference(
                input_ids=padded, attention_mask=mask.long(), output_attentions=True, **options
            ).attentions
        assert len(found) == len(expected) == layered.num_layers
        for one, other in zip(found, expected, strict=True):
            one, other = (layer.transpose(1, 2)[mask] for layer in (one, other))  # of real queries
            np.testing.assert_allclose(one, other, atol=1e-5)
            np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)


def test_looking_changes_nothing(folder_of: Any, tmp_path: Any) -> None:  # noqa: F811
    encoder = read_encoder(folder_of("bert"), tmp_path)
    inputs, layered = encoded(encoder), encoder.layered_encoder(0, pretrained=True)
    batch = inputs.batch(np.arange(3), layered.device)
    with torch.inference_mode():
        before = layered(*batch)[-1]
        attention_probabilities(layered, *batch)
        assert torch.equal(layered(*batch)[-1], before)


def test_a_model_without_weights_for_all_pairs_is_refused(folder_of: Any, tmp_path: Any) -> None:  # noqa: F811
    encoder = read_encoder(folder_of("albert"), tmp_path)
    inputs, layered = encoded(encoder), encoder.layered_encoder(0, pretrained=True)
    model: Any = layered.encoder
    forward = model.model.forward

    def windowed(**arguments: Any) -> Any:
        outputs = forward(**arguments)
        outputs.attentions = tuple(layer[..., :3] for layer in outputs.attentions)
        return outputs

    model.model.forward = windowed
    with pytest.raises(UserError, match="albert: transformers has no weights for all pairs of its tokens"):
        attention_probabilities(layered, *inputs.batch(np.arange(3), layered.device))


def test_an_architecture_with_another_attention_is_refused(folder_of: Any, tmp_path: Any) -> None:  # noqa: F811
    encoder = read_encoder(folder_of("bert"), tmp_path)
    inputs, layered = encoded(encoder), encoder.layered_encoder(0, pretrained=True)
    layer: Any = layered.encoder.get_submodule("layers.1")
    layer.attention = torch.nn.Identity()
    with pytest.raises(UserError, match=r"^the attention of Layer is not BERT's and cannot be drawn; give a BERT$"):
        attention_probabilities(layered, *inputs.batch(np.arange(3), layered.device))
