# One image for all that is ours: web, worker, migrate and flower differ by the command only.

FROM python:3.13-slim AS build
RUN python -m venv --without-pip /opt/venv
COPY requirements/deploy.txt .
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r deploy.txt

FROM python:3.13-slim
# A fixed number, so that the owner of the volume stays the same in the next image.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/mailer mailer \
    && install --directory --owner mailer --group mailer --mode 700 /var/lib/mailer
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 INSTANCE_PATH=/var/lib/mailer
WORKDIR /srv/mailer
COPY . .
# Here, because who runs it can't write to this folder.
RUN python -m compileall -q .
USER 10001
CMD ["gunicorn", "devstack.demo:create_app()", "--bind", "0.0.0.0:8000", "--worker-class", "gthread", "--threads", "8", "--no-control-socket"]
