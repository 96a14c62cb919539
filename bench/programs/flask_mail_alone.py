"""Flask-Mail without a queue.

`COUNT loop` sends in the request, `COUNT kept` does so over one connection, `COUNT threads` starts
a thread for each mail.
"""

import os
import sys
from threading import Thread

from flask import Flask
from flask_mail import Mail, Message

from bench import producer
from bench.programs.message import make_message

app = Flask(__name__)
app.config.update(MAIL_SERVER=os.environ["MAIL_SERVER"], MAIL_PORT=int(os.environ["MAIL_PORT"]))
flask_mail = Mail(app)


def send_async_email(message: Message) -> None:
    with app.app_context():
        flask_mail.send(message)


def main() -> None:
    threads: list[Thread] = []

    def send_in_thread(message: Message) -> None:
        thread = Thread(target=send_async_email, args=[message])
        thread.start()
        threads.append(thread)

    def wait_for_all() -> None:
        for thread in threads:
            thread.join()

    with app.app_context():
        match sys.argv[2]:
            case "loop":
                producer.run(make_message, flask_mail.send)
            case "kept":
                with flask_mail.connect() as connection:
                    producer.run(make_message, connection.send)
            case "threads":
                producer.run(make_message, send_in_thread, wait_for_all)


if __name__ == "__main__":
    main()
