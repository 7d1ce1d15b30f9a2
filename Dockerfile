# vtc with its built-in benchmark, on a CPU or on a GPU (docker run --gpus all …). Results are written to /runs/outputs.
#   docker build -t vtc .
#   docker run --rm -v "$PWD:/runs" vtc method=fwd2bot tokens=16
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY vtc vtc
COPY conf conf
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --constraint constraints.txt . && rm -rf /src

WORKDIR /runs
ENTRYPOINT ["vtc"]
CMD ["--help"]
