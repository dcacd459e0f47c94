"""Gradio's page as an application of its own, with everything off that would reach out or be reached."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI

from leveret.serve.web.page import CSS, Page
from leveret.serve.web.talk import Talk


def mounted(talk: Talk, name: str, path: str, *, runs: bool) -> FastAPI:
    """The page below `path` of a new application."""
    page = Page(talk, name, runs=runs)
    fonts = ["system-ui", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"])
    theme.set(
        body_background_fill="*neutral_100",
        block_background_fill="white",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
    )
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(),
        page.blocks,
        path,
        footer_links=[],
        run_history=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=theme,
        css=CSS,
    )
    return app
