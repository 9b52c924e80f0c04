"""ONNX models: read as data, never run. `importer.import_onnx` is the way in; `ops_*.py` hold one function per operator."""
