"""tinyft's own weights file: HDF5 that any HDF5 program can show."""
