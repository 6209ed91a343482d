"""Tests what one library can do on this machine: ``python -m runner.process.probe torch|bitsandbytes|llama_cpp``.

Its own process. It uses the library and prints facts as one line of JSON, the last on standard output. It may crash or
hang with the library, so the caller (``main.py doctor``) sets a time limit. Knows no models and no settings.
"""

import importlib
import json
import sys
import warnings
from typing import Any


def torch() -> dict[str, Any]:
    """Facts of PyTorch: ``cuda`` is the release it was built for, ``trouble`` why its GPU does not work."""
    torch = importlib.import_module("torch")
    facts: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda, "works": False}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if torch.version.cuda and torch.cuda.device_count():
                facts["architectures"] = torch.cuda.get_arch_list()
                facts["works"] = torch.ones(8, device="cuda").sum().item() == 8
            trouble = ""
        except Exception as error:  # the user needs to see any error
            trouble = str(error)
        facts["trouble"] = trouble or "; ".join(str(warning.message) for warning in said)
    return facts


def bitsandbytes() -> dict[str, Any]:
    """Facts of bitsandbytes: whether it quantizes to 4 bits and back on the device that models use."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("runner.process.compat").import_bitsandbytes()
    device = "cuda" if torch.version.cuda and torch.cuda.is_available() else "cpu"
    numbers = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
    packed, state = library.functional.quantize_4bit(numbers, quant_type="nf4")
    error = (library.functional.dequantize_4bit(packed, state) - numbers).abs().max().item()
    return {"version": library.__version__, "device": device, "works": error < 0.25, "trouble": ""}


def llama_cpp() -> dict[str, Any]:
    """Facts of llama-cpp-python: whether it can put layers on a GPU."""
    library = importlib.import_module("llama_cpp")
    offload = bool(library.llama_supports_gpu_offload())
    return {"version": library.__version__, "works": True, "offload": offload, "trouble": ""}


_PROBES = {"torch": torch, "bitsandbytes": bitsandbytes, "llama_cpp": llama_cpp}


def main(name: str) -> int:
    """Print the facts. Return 1, with the reason as ``trouble``, if the library cannot be used."""
    try:
        facts = _PROBES[name]()
    except Exception as error:
        print(json.dumps({"trouble": f"{type(error).__name__}: {error}"}))
        return 1
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
