"""How Sphinx renders the site."""

from mlcycle import __version__

project = "mlcycle"
author = "The mlcycle authors"
copyright = author
version = release = __version__

extensions = ["myst_nb"]
nb_execution_mode = "off"  # docs/build.py has run the notebooks
nb_output_stderr = "remove"  # What libraries log says nothing about the stage
nb_merge_streams = True
nb_ipywidgets_js = {}  # No page loads anything from elsewhere
myst_enable_extensions = ["deflist"]  # A dollar sign is a dollar sign

html_theme = "pydata_sphinx_theme"
html_title = "mlcycle"
html_static_path = ["_static"]
html_css_files = ["mlcycle.css"]
html_show_sourcelink = html_copy_source = False
html_show_copyright = html_show_sphinx = False
html_theme_options = {
    "logo": {"text": "mlcycle"},
    "navbar_end": ["theme-switcher"],
    "footer_start": [],
    "footer_end": [],
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}
html_sidebars = {"index": []}
