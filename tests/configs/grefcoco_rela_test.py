"""The optimiser of `configs/grefcoco_rela.py` against the public code's, tensor by tensor.

`train_net.py` of henghuiding/ReLA decides by the type of a module (norms and embeddings have no decay)
and by the name of a table of relative positions. It leaves out everything below `text_encoder`, and
then adds the parameters of BERT's layers 0 to 9 as one list, with decay.
"""

import re
from collections import Counter

from configs import grefcoco_rela
from refseg_jax.weights import rela
from refseg_jax.weights.loader import first_match
from tests.refseg_jax.weights import rela_sources

#: Modules of torch without decay: LayerNorm and GroupNorm by their names in the public code, then
#: Embedding.
NORMS = r".*(norm\d?|input_proj\.\d\.1)\.(weight|bias)"
EMBEDDINGS = r"sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.weight"


def _there(entry: str) -> str:
    """What the public optimiser does with an entry of the state dict."""
    if entry.startswith("text_encoder."):
        layer = re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", entry)
        return "decayed" if layer and int(layer[1]) < 10 else "frozen"
    plain = (NORMS, EMBEDDINGS, r".*\.relative_position_bias_table")
    return "undecayed" if any(re.fullmatch(pattern, entry) for pattern in plain) else "decayed"


def _here(parameter: str) -> str:
    optim = grefcoco_rela.get_config().optim
    rates = [rate for pattern, rate in optim.lr_multipliers if re.fullmatch(pattern, parameter)]
    if not rates[0]:
        return "frozen"
    return "undecayed" if re.fullmatch(optim.undecayed, parameter) else "decayed"


def test_each_tensor_is_decayed_as_in_the_public_code() -> None:
    table = rela.rela(live=False)
    found: Counter[str] = Counter()
    norms_of_bert = 0
    for entry in rela_sources.rela(rela_sources.BASE):
        for parameter, _ in first_match(table.rules, entry) or ():
            assert _here(parameter) == _there(entry), (entry, parameter)
        if not rela_sources.is_index(entry):
            found[_there(entry)] += 1
            norms_of_bert += bool(re.fullmatch(r"text_encoder\..*LayerNorm\..*", entry))
    assert found == {"decayed": 620, "undecayed": 231, "frozen": 37}
    # Two norms a layer and that of the embeddings; those of layers 0 to 9 are 40 decayed tensors.
    assert norms_of_bert == 2 * (2 * 12 + 1)
    decayed = [
        f"text.layers.{n}.{norm}_norm.scale" for n in range(10) for norm in ("attention", "mlp")
    ]
    assert {_here(path) for path in decayed} == {"decayed"}
