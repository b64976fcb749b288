"""The earlier name of ``scripts/export.py``, which writes ONNX unless ``--to`` says otherwise."""

if not __package__:  # run as a file: the repository's root is not on the import path
    import _as_module  # noqa: F401 - restarts it as python -m scripts.NAME

from scripts.export import main

if __name__ == "__main__":
    main()
