"""The verb `merge`: several model directories in, one model directory out."""
