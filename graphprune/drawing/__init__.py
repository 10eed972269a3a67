"""Pictures of circuits and curves: layouts, figures, the interactive page."""
