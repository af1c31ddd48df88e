"""The control server: speaks the TFE v2 API and hands runs to listeners."""
