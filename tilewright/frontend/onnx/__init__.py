"""ONNX models, read as data, not run. `importer.import_onnx` is the way in; `ops_*.py` has a function per operator."""
