"""`flipped pretrain`: what lies between its runs."""

from __future__ import annotations

import numpy as np

from flipped_cli import pretrain


def test_a_deeper_model_computes_what_it_did_before(tmp_path):
    import jax

    from t5_engine import config, exchange
    from t5_engine.model import init_params
    from t5_engine.scorer import Scorer

    settings = config.size("tiny", vocab_size=64)
    params = init_params(settings, jax.random.key(3))
    (source := tmp_path / "source").mkdir()
    exchange.save(source, params, settings, step=5)
    pretrain.deepen(source, tmp_path / "deeper", seed=1)
    deeper, grown, _ = exchange.load(tmp_path / "deeper")
    assert grown == settings.replace(num_encoder_layers=settings.num_encoder_layers + 1)
    pairs = [([5, 6, 7, 1], [8, 1]), ([9, 10, 1], [11, 12, 1])]
    before, after = (Scorer(c, p).score(pairs) for c, p in ((settings, params), (grown, deeper)))
    np.testing.assert_allclose(after, before, atol=1e-5)
    query = deeper["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert np.abs(np.asarray(query[-1])).max() > 0  # the new layer can learn
