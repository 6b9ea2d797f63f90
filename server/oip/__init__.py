"""The Open Inference Protocol, version 2 (KServe's, which Triton and others speak): ranking as inference on tensors."""
