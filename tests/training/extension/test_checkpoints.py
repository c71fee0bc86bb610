"""Saved checkpoints of every extension, opened by stock libraries in a process that has no longshort."""

import os
import subprocess
import sys

import pytest
import torch

from longshort.testing import tiny_tokenizer
from tests.training.extension.build import ARCHITECTURES, LENGTH, extended, tokens

STOCK = ("none", "linear", "dynamic", "yarn", "longrope", "llama3", "longqlora")
NAMES = [f"{extension}-llama" for extension in STOCK]
NAMES += [f"{extension}-{architecture}" for extension in ("clex", "eabf") for architecture in ARCHITECTURES]
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"

READER = """
import sys
sys.modules["longshort"] = None  # cannot be imported
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

root, text = Path(sys.argv[1]), sys.argv[2]
tokens = torch.load(root / "tokens.pt")
found = {}

def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model

@torch.no_grad()
def logits(model):
    return model(tokens).logits

for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    model = load(folder)
    model.save_pretrained(root / "again" / folder.name)
    again = load(root / "again" / folder.name)
    found[folder.name] = {
        "logits": logits(model),
        "again": logits(again),
        "float32": [name for name, p in model.named_parameters() if p.dtype == torch.float32],
    }
    if folder.name.endswith("float32"):
        try:
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
            found[folder.name]["untrusted"] = "loaded"
        except ValueError as error:
            found[folder.name]["untrusted"] = str(error)

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

for name in sorted(found):
    if name.endswith("llama-float32"):
        lm = HFLM(pretrained=str(root / name), trust_remote_code=True, device="cpu", batch_size=1)
        request = Instance("loglikelihood_rolling", {}, (text,), 0)
        found[name]["max_length"] = lm.max_length
        found[name]["lm_eval"] = lm.loglikelihood_rolling([request], disable_tqdm=True)[0]
torch.save(found, root / "found.pt")
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The logits of models before they are saved, and what a fresh process finds in their folders."""
    root = tmp_path_factory.mktemp("checkpoints")
    x, tokenizer = tokens(40), tiny_tokenizer()
    torch.save(x, root / "tokens.pt")
    expected, scores = {}, {}
    for name in NAMES:
        extension, architecture = name.split("-")
        length, factor = (LENGTH, None) if extension == "none" else (3 * LENGTH, 4.0)
        model = extended(
            extension,
            architecture,
            train_length=length,
            factor=factor,
            model_changes={"vocab_size": len(tokenizer)},
        )
        if extension == "clex":
            torch.nn.init.normal_(model.model.rotary_emb.down, std=0.3)
        scores[name] = rolling(model, tokenizer)  # first, for dynamic RoPE remembers long texts
        model.save_pretrained(root / f"{name}-float32")
        # Not .to(bfloat16), which would round stock RoPE's buffers; no loader does.
        half = type(model).from_pretrained(root / f"{name}-float32", dtype=torch.bfloat16)
        half.save_pretrained(root / f"{name}-bfloat16")
        for dtype, made in (("float32", model), ("bfloat16", half)):
            tokenizer.save_pretrained(root / f"{name}-{dtype}")
            with torch.no_grad():
                expected[f"{name}-{dtype}"] = made(x).logits
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(root), TEXT],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return expected, scores, torch.load(root / "found.pt")


def rolling(model, tokenizer):
    """log p(TEXT) in windows of the model's length, the first token after <s> as lm-eval has it."""
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]
    reach = model.config.max_position_embeddings
    total, start = 0.0, 0
    while start < len(ids) - 1:
        stop = min(start + reach, len(ids) - 1)  # predict ids[start + 1 .. stop]
        first = max(0, stop - reach)
        with torch.no_grad():
            log_probabilities = model(torch.tensor([ids[first:stop]])).logits[0].double().log_softmax(-1)
        total += sum(log_probabilities[i - first - 1, ids[i]].item() for i in range(start + 1, stop + 1))
        start = stop
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_finds_the_same_logits(name, dtype, checkpoints):
    expected, _, found = checkpoints
    assert torch.equal(found[f"{name}-{dtype}"]["logits"], expected[f"{name}-{dtype}"])
    assert torch.equal(found[f"{name}-{dtype}"]["again"], expected[f"{name}-{dtype}"])


def test_extensions_differ(checkpoints):
    """Or the tests above would not see one saved as another."""
    expected = [checkpoints[0][f"{extension}-llama-float32"] for extension in (*STOCK[:-1], "clex", "eabf")]
    for i, one in enumerate(expected):
        for other in expected[:i]:
            assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_own_code_is_refused_without_trust(name, checkpoints):
    untrusted = checkpoints[2][f"{name}-float32"]["untrusted"]
    if name.startswith(("clex", "eabf")):
        assert "trust_remote_code=True" in untrusted
    else:
        assert untrusted == "loaded"


def test_the_ode_is_loaded_in_float32(checkpoints):
    kept = checkpoints[2]["clex-llama-bfloat16"]["float32"]
    assert kept == ["model.rotary_emb.up", "model.rotary_emb.down"]
    assert checkpoints[2]["eabf-llama-bfloat16"]["float32"] == []


@pytest.mark.parametrize("extension", [*STOCK, "clex", "eabf"])
def test_stock_lm_eval_scores_it(extension, checkpoints):
    _, scores, found = checkpoints
    name = f"{extension}-llama-float32"
    assert found[name]["max_length"] == (LENGTH if extension in ("none", "dynamic") else 4 * LENGTH)
    assert found[name]["lm_eval"] == pytest.approx(scores[f"{extension}-llama"], rel=1e-5)
