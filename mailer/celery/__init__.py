"""The Celery side: the Celery application, the doorbell, and Mailer's part of each worker."""
