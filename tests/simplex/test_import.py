"""`import simplex` is light: torch comes only with tensors."""

import subprocess
import sys


def test_numpy_input_never_imports_torch() -> None:
    code = (
        "import sys, numpy as np, simplex\n"
        "x = np.arange(6.0).reshape(2, 3)\n"
        "for f in (simplex.softmax, simplex.sparsemax, simplex.entmax15, simplex.taylor_softmax): f(x)\n"
        "simplex.certify(x, 10); simplex.entmax(x, 1.3)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
