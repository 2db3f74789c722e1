from tests.golden import CASES, FOLDER, payload

for name, case in CASES.items():
    (FOLDER / f"{name}.bin").write_bytes(payload(case))
