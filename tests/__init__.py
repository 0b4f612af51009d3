"""The tests, in the folders of what they test; `data` holds small real files, `benchmarks` what measures speed."""
