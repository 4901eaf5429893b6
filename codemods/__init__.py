"""What deltaspec can change in a training module: one codemod a class.

The folder ``codemods/`` of a project joins this package, without any file of its own.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
