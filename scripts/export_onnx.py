"""The earlier name of ``scripts/export.py``, which writes ONNX unless ``--to`` says otherwise."""

if not __package__:  # run as a file: the repository's root is not on the import path
    from _as_module import restart_as_module

    restart_as_module(__file__)

from scripts.export import main

if __name__ == "__main__":
    main()
