"""Writes the example package's method and test anew, as `action=new_method name=loudest kind=pruner` would.

python docs/tools/example.py
"""

from vtc import shipped
from vtc.authoring import rendered

if __name__ == "__main__":
    package = shipped.root() / "examples" / "vtc-plugin-example"
    files = rendered("loudest", "pruner", "vtc_plugin_example.loudest")
    (package / "src/vtc_plugin_example/loudest.py").write_text(files["loudest.py"], encoding="utf-8")
    (package / "tests/test_loudest.py").write_text(files["test_loudest.py"], encoding="utf-8")
