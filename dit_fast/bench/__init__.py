# SPDX-License-Identifier: Apache-2.0
"""Timings beside real alternatives: correct first, then timed, in one run and alternating.

`dit-fast bench` and `python -m benchmarks` are two doors to `runner`. A kind of benchmark (ops, model, train, sample,
memory) is a module with `rows(session)`; an implementation it compares with is a peer (`peers`); what comes out is a
`Result` of `Row`s (`schema`), which `compare`, the page and the README's tables read.
"""
