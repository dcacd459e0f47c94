"""The verb `quantize`: a model directory in, a smaller model directory out."""
