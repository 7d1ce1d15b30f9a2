"""Data as the rest of vtc reads them: pictures, frames of videos, files to train on."""
