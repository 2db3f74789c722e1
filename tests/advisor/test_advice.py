from hvd_compress.advisor import advice
from hvd_compress.advisor.forecast import Forecast
from hvd_compress.advisor.model import of_parameter_count


def test_the_advice_is_about_the_fastest_that_works() -> None:
    model = of_parameter_count(10**6, 1.0)

    def took(seconds: float) -> dict[int, Forecast]:
        return {4: Forecast(compute=1.0, wait=seconds - 1.0)}

    found = {advice.UNCOMPRESSED: took(2.0), "a": took(1.2), "b": took(3.0), "c": {4: Forecast(error="no")}}
    said = advice.advice(found, model, 4)
    assert (said.best, said.compress) == ("a", True)
    assert said.text.endswith("Slower than uncompressed: b.")
    assert "1.67 times as fast" in said.text
    assert advice.advice({**found, "a": took(1.95)}, model, 4).text == (
        "Do not compress with 4 workers: uncompressed takes 2,000.0 ms a step, and the best, a, costs about what it "
        "saves (1,950.0 ms)."
    )
    assert advice.advice({**found, advice.FP16: took(1.22)}, model, 4).text.startswith("Horovod's own fp16 is enough")
    assert not advice.advice({advice.UNCOMPRESSED: took(1.02), "a": took(1.5)}, model, 4).compress
