"""The measurements and the model behind docs/scaling.md.

python -m bench.scaling.measure     what a mail costs, on PostgreSQL
python -m bench.scaling.vacuum      dead rows, indexes and vacuum at a steady rate
python -m bench.scaling             the model, from these measurements, into docs/scaling.md
"""
