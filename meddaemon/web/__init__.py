"""What is spoken over HTTP: the Store Transaction of DICOMweb (STOW-RS, PS3.18 section 10.5)."""
